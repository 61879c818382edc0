"""What the terminal shows while stages run: a view that is redrawn in place, or plain lines."""
