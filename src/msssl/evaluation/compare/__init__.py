"""`msssl report`: compares runs by their probe reports, over seeds and with intervals."""
