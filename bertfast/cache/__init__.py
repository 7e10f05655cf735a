"""bertfast.cache"""
