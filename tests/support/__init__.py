"""What the tests of several parts need."""
