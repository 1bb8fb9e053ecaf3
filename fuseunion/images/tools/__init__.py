"""What is done with an image that is not mounted: made, looked at, checked, resized, copied, packed and unpacked."""
