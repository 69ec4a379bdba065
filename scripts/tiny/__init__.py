"""What scripts/make_tiny.py is made of: demonstrators, tokenizer, training, measurement, model card."""
