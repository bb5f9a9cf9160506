"""How wrong a chain through random features is, before it is used."""
