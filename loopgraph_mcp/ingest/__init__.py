"""Where methods come from: untrusted text, checked at the door."""
