"""What is done to training images on their way to the model."""
