"""bertfast.text"""
