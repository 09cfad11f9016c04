"""Stage one: images to tokens, each computed once and kept in a store."""
