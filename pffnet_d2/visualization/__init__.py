"""Pictures of images, label maps and scores."""
