"""What the image is made of: locked by hash, audited, listed, its bases pinned by digest."""
