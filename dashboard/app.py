"""The dashboard's entry: `streamlit run` executes this file for every visit."""

import streamlit as st

from dashboard.views import jobs, machines, recommendations

st.set_page_config(page_title="specfarm", layout="wide")
st.html("<style>.stMainBlockContainer { padding-top: 4.5rem; }</style>")
st.navigation(
    [
        # The default page lives at /, whatever path it is given.
        st.Page(recommendations.page, title="Recommendations", default=True),
        st.Page(jobs.page, title="Jobs", url_path="jobs"),
        st.Page(machines.page, title="Machines", url_path="machines"),
    ],
    position="top",
).run()
