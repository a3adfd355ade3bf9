"""Methods that learn while they act, on a base of value or policy learning."""
