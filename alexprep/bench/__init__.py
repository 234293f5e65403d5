"""What the parts cost, side by side with what they are held against."""
