"""Low-rank methods: every layer becomes two smaller ones."""
