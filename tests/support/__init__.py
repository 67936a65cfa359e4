"""What several test folders share: tiny models and data, worlds of real ranks, running commands."""
