"""Measured runs over lists of facts: ``run`` makes them, ``folder`` keeps them, ``verdict`` judges them."""
