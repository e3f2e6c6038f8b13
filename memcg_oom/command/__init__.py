"""The command memcg-oom."""
