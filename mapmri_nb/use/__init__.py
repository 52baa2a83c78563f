"""What surrounds the method: files, commands, error bars, directions, pictures, clusters."""
