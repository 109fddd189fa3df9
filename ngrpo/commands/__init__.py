"""What the entry points do, a module for each: compose, build, call one function of a room, tell what came of it."""
