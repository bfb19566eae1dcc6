"""What people read: pages, plots and lines of text."""
