"""What a model is worth: data sets, zero-shot and few-shot classification, retrieval."""
