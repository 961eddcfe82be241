"""The bundled model `mini`: the grammar of its texts, its training and its weights (a local Hugging Face directory)."""
