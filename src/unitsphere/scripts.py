"""Scripts that put no spaces between words, as ranges for a regular expression's [...].

Source: https://www.unicode.org/Public/UCD/latest/ucd/Blocks.txt
"""

# Iteration marks, kana and half-width kana, Han with its extensions A to H and the compatibility ideographs
SPACELESS = r"\u3005-\u3007\u3040-\u30ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
HANGUL = r"\uac00-\ud7af"  # has spaces, but between phrases rather than words
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer: alphabets without spaces
PUNCTUATION = r"\u3001-\u3004\u3008-\u303f\uff01-\uff65"  # of these scripts, and their full-width letters
