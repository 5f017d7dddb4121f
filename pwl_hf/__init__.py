"""temp"""
import os
if not os.path.isdir(os.path.join(os.path.dirname(__file__),"modeling")):
    __path__.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
