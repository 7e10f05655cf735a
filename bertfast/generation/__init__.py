"""bertfast.generation.loop"""
