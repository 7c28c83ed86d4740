"""A local page to look through scored images: what a prediction or an evaluation found."""
