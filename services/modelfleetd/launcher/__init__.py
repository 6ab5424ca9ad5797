"""The launcher: takes a candidate to its share of the traffic, safely, on scarce machines."""
