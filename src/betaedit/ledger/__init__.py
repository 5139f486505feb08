"""The durable record of edits: a workspace that loses nothing, takes everything back, and hands it on."""
