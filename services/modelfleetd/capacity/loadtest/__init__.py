"""The search for a replica's maximum load: verdicts, the search itself, the generator, the job."""
