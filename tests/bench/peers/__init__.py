"""The field's other learners, each in a process of its own, in the environment of requirements.txt."""
