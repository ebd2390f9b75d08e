"""What compressed networks are made of: plans, masks, factors and channels."""
