"""What runs should take before they are carried out, and which of them to carry out."""
