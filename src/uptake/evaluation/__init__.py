"""Run an evaluation: protocols, plan, engine, journal, workers."""
