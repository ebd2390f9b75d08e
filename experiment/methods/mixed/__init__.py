"""Methods that choose among several families layer by layer."""
