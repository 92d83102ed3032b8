"""A few lines of events in each format of `ssept prepare`."""

# In each, the first user has the items "late", "early", "mid" in this order of lines.
SAMPLES = {
    "movielens-100k": ("u.data", "9\t30\t4\t300\n9\t10\t1\t100\n9\t20\t5\t200\n8\t10\t3\t150\n"),
    "movielens-1m": (
        "ratings.dat",
        "9::30::4::300\n9::10::1::100\n9::20::5::200\n8::10::3.5::150\n",
    ),
    "movielens-csv": (
        "ratings.csv",
        "userId,movieId,rating,timestamp\n9,30,4.5,300\n9,10,1.0,100\n9,20,5.0,200\n8,10,3.0,150\n",
    ),
    "amazon-json": (
        "reviews.json",
        '{"reviewerID": "A9", "asin": "B30", "reviewText": "a \\"b\\"\\n", "unixReviewTime": 300}\n'
        '{"reviewerID": "A9", "asin": "B10", "unixReviewTime": 100}\n'
        '{"asin": "B20", "reviewerID": "A9", "overall": 5.0, "unixReviewTime": 200}\n'
        '{"reviewerID": "A8", "asin": "B10", "unixReviewTime": 150}\n',
    ),
    "amazon-2023-json": (
        "All_Tests.jsonl",
        '{"user_id": "A9", "asin": "x", "parent_asin": "B30", "timestamp": 1588615855070}\n'
        '{"user_id": "A9", "asin": "y", "parent_asin": "B10", "timestamp": 1588615855068}\n'
        '{"user_id": "A9", "asin": "z", "parent_asin": "B20", "timestamp": 1588615855069}\n'
        '{"user_id": "A8", "asin": "z", "parent_asin": "B10", "timestamp": 1}\n',
    ),
    "amazon-2014-csv": (
        "ratings_Tests.csv",
        "A9AAAAAAAAAAA,B000000030,4.0,300\nA9AAAAAAAAAAA,0000000010,1.0,100\n"
        "A9AAAAAAAAAAA,000000020X,5.0,200\nA8AAAAAAAAAAA,0000000010,3.0,150\n",
    ),
    "amazon-2018-csv": (
        "Tests.csv",
        "B000000030,A9AAAAAAAAAAA,4.0,300\n0000000010,A9AAAAAAAAAAA,1.0,100\n"
        "000000020X,A9AAAAAAAAAAA,5.0,200\n0000000010,A8AAAAAAAAAAA,3.0,150\n",
    ),
    "amazon-2023-csv": (
        "All_Tests.csv",
        "user_id,parent_asin,rating,timestamp\nA9,B30,4.0,300\nA9,B10,1.0,100\nA9,B20,5.0,200\n"
        "A8,B10,3.0,150\n",
    ),
    "steam": (
        "steam_reviews.json",
        "{u'username': u'9\\xe9\"', u'product_id': u'30', u'date': u'2017-12-17', u'text': u'it\\'s'}\n"
        "{u'username': u'9\\xe9\"', u'product_id': u'10', u'date': u'2017-11-30', u'hours': 0.1}\n"
        "{u'username': u'9\\xe9\"', u'product_id': u'20', u'date': u'2017-12-02', u'early': False}\n"
        "{u'username': u'8', u'product_id': u'10', u'date': u'2015-01-01', u'x': None}\n",
    ),
    "csv": ("log.csv", "item;user;timestamp\n30;9;300\n10;9;100\n20;9;200\n10;8;150\n"),
}
