"""How good is a policy? Raw values by name, never averaged."""
