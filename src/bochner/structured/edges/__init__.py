"""What connects neighbours: weights K(x, y) given, of low rank, of embeddings, exact on a beam."""
