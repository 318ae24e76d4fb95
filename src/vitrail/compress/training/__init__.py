"""What learns, and by which loss: autoencoder, masked image model, decoder for the eye (Section 5.3.3)."""
