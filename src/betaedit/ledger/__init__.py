"""The durable record of edits: a workspace that loses nothing and takes everything back."""
