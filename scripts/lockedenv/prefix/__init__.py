"""An environment on disk: whose it is, what it holds, its states and its removal."""
