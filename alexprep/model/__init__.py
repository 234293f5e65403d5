"""A network of a recipe: trained in a folder, evaluated, asked."""
