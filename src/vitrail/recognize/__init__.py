"""XCiT at work: classification, and a look inside."""
