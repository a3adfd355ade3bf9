"""Methods for logged data, on a base that learns from a dataset."""
