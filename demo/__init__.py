"""The main job shown end to end (`make demo`): a model, its traffic, five versions, a table and a report."""
