"""Newton-type methods: curvature in every step."""
