"""Weight averages, freezing, parallel iterations and teleportation."""
