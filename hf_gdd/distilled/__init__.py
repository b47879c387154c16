"""Turn a generator into a data set, a stream or a data set on the Hub."""
