"""Measured runs over lists of facts: ``run`` makes them, ``folder`` stores them, ``verdict`` judges them."""
