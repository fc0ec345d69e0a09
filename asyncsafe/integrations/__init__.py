"""One module a library, named after it: what does I/O, what is exempt."""
