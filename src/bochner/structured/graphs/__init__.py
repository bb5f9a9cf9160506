"""Trees, segments, and graphs with cycles."""
