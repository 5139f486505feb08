"""The durable record of edits: a workspace that stores, undoes and exports them."""
