"""Networks whose features sample quality is measured in."""
